"""How this was measured, and what the words mean."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from forge.report.comparison import Comparison
from forge.report.markup import element, join
from forge.report.sections.parts import Section, bullets
from forge.report.words import percent

_GLOSSARY: Final = (
    ("Baseline", "The model that a variant was made from, unless one was named for all."),
    (
        "Constrained, unconstrained",
        "Constrained: the likeliest option is the answer. "
        "Unconstrained: the likeliest token of the whole vocabulary is, and an answer that is no "
        "option is missing, and wrong. The two are never mixed in a table.",
    ),
    (
        "Expected calibration error",
        "Mean distance between confidence and accuracy over bins of "
        "confidence, weighted by their answers. Confidence: probability of the chosen option.",
    ),
    ("Flip", "A question whose answer is right with one model and wrong with the other."),
    (
        "KL divergence",
        "How much a variant's distribution of the next token departs from its "
        "source's, in nats; 0 if they are the same.",
    ),
    ("Macro, micro", "Mean over tasks, each counted once; mean over questions, each counted once."),
    ("Margin", "The loss of accuracy that does not matter. It is set before looking."),
    ("Missing", "An answer from which no option can be read."),
    (
        "Option mass",
        "Probability that a model gives to all options together. Low mass: it did not "
        "understand that a letter was asked for.",
    ),
    (
        "Pareto front",
        "The models than which no other is at least as good in all respects and better in one.",
    ),
    (
        "Prefill, decode",
        "Reading the prompt, and writing one token after the other. They are "
        "bound by different things, so a format can be slow in one and fast in the other.",
    ),
    ("Task vector", "Fine-tuned weights minus base weights."),
    ("Time to first token", "From the prompt to the first token, reading and one step."),
)


def methods(comparison: Comparison) -> Section:
    """Lay out how figures came about, and the glossary."""
    settings = comparison.settings
    sentences = [
        "Two models are compared question by question, on the questions and sets of examples that "
        "both have; over several sets a question counts once, with its mean. Standard errors are "
        "clustered where questions share a passage.",
        f"Intervals of differences are paired, at {percent(settings.confidence, 0)} %. The test is "
        "McNemar's, exact. Where several tests are made, p-values are corrected after Holm"
        + "".join(
            f"; family “{family.name}”: {family.num_tests} tests at {family.alpha:g}"
            for family in settings.families
        )
        + ".",
        f"A variant is not worse if its whole interval lies above −{percent(settings.margin)} "
        "points, better if it lies above zero, worse if it lies below zero and reaches beyond the "
        "margin, and undecided otherwise.",
        "± is the population standard deviation over sets of examples, not an interval.",
        "Profiles run in processes of their own, warmed up until times are flat, with a fixed "
        "number of tokens, and in turns with their baseline. A ratio is one of medians, with a "
        "bootstrap interval over rounds; where the machine's noise covers it, nobody wins.",
        "Memory is several numbers. Table 1 shows one of them for all models, named in its "
        "heading; the others are below it. Units are decimal.",
        "KL divergence is taken with both models in step on the same tokens.",
    ]
    terms = (
        join((element("dt", None, term), element("dd", None, meaning)))
        for term, meaning in _GLOSSARY
    )
    body = join(
        (
            bullets(sentences),
            element("h3", None, "Glossary"),
            element(
                "dl", {"class": "glossary columns"}, *(element("div", None, term) for term in terms)
            ),
        )
    )
    return Section("methods", "How this was measured", body)


def downloads(files: tuple[str, ...]) -> Section:
    """Lay out what can be taken from the page, and the files beside it.

    Args:
        files: Names of files in the page's folder, relative to it.
    """
    parts = [
        bullets(
            [
                "Each table has a button that saves it as CSV, and each chart one that saves it as "
                "SVG; they work offline.",
            ]
        ),
    ]
    if files:
        parts.append(element("p", None, "Files that were written beside this page:"))
        links = (element("li", None, element("a", {"href": quote(name)}, name)) for name in files)
        parts.append(element("ul", {"class": "columns"}, *links))
    return Section("downloads", "Downloads", join(parts))
