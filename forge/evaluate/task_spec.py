"""What a suite says of its tasks: where questions are, what their columns mean, how they are put.

Everything here is plain and frozen: it is read from one YAML file by ``suite_reader``, and nothing
is opened for it but the files that lie beside the suite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from forge.core.catalog import did_you_mean
from forge.core.errors import EvaluationError
from forge.results.records import digest_of

Kind = Literal["choice", "text"]
"""Whether a question is answered by one token or in words."""
AnswerForm = Literal["index", "index_from_1", "letter", "text"]
"""How a column names the right option."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows are.

    Attributes:
        hub: Id of a data set on the Hub, ``@revision`` allowed, or ``None``.
        config: Subset of it: the folder of its files, such as ``anatomy``.
        split: Word in the names of its files, such as ``test``.
        archive: Zip file in it that holds ``member``, or ``None``.
        member: File in the archive.
        file: Name in the folder that replaces the Hub.
        beside: Name of a file beside the suite; it is the only place then.
        where: Value that a column must have, by column; other rows are not the task's.
        only_ids: File beside the suite with the ids of the rows of the Hub that are meant.
        except_ids: File beside the suite with the ids of those that are not.
    """

    hub: str | None = None
    config: str | None = None
    split: str = "test"
    archive: str | None = None
    member: str | None = None
    file: str | None = None
    beside: str | None = None
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    only_ids: str | None = None
    except_ids: str | None = None


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns of a task's rows mean.

    A name may step into records with dots, and names that stand in for each other are separated by
    ``|``: ``contexts|context.contexts``. The first that a row has is taken.

    Attributes:
        question: Column of the question.
        context: Column of the passage that it is about, a text or a list of them, or ``None``.
        options: Column with a list or a mapping from letters, or one column an option.
        fixed_options: The options, where they are the same for all rows; else empty.
        answer: Column that names the right option.
        answer_is: How it does.
        right: Column of the right option's text, where ``wrong`` lists the others; their order is
            then shuffled, by the question alone.
        wrong: Column with a list of wrong options.
        reference: Column of the answer in words; tasks of kind ``text`` have one.
        id: Column that names the item; by default a digest of its content.
        label: Column to stratify by; by default the right option, and always that where an
            answer in words decides for one.
        cluster: Column with the name of the passage that items share, or ``None``.
    """

    question: str
    context: str | None = None
    options: tuple[str, ...] = ()
    fixed_options: tuple[str, ...] = ()
    answer: str | None = None
    answer_is: AnswerForm = "index"
    right: str | None = None
    wrong: str | None = None
    reference: str | None = None
    id: str | None = None
    label: str | None = None
    cluster: str | None = None


@dataclass(frozen=True, slots=True)
class PromptForm:
    """How a question is put; words in braces are replaced.

    An example is ``question + cue + answer``, and a prompt is ``instruction``, each example with
    ``between_examples`` behind it, and ``question + cue`` of the item.

    Attributes:
        instruction: What stands before everything, from ``{subject}``.
        question: The question, from ``{context}``, ``{question}`` and ``{options}``.
        context: How the passages are put that a question is about, from ``{text}``.
        between_passages: What separates passages.
        option: An option, from ``{letter}`` and ``{text}``.
        between_options: What separates options.
        cue: What leads to the answer; it begins the assistant's turn in a chat.
        answer: The answer behind the cue: of an option from ``{letter}`` or ``{text}``, in words
            from ``{reference}`` and ``{decision}``.
        between_examples: What separates examples.
    """

    question: str
    answer: str
    instruction: str = ""
    context: str = "{text}\n"
    between_passages: str = " "
    option: str = "{letter}. {text}"
    between_options: str = "\n"
    cue: str = ""
    between_examples: str = "\n\n"


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task of a suite.

    Attributes:
        name: Its name, unique in the suite.
        title: Its name in tables.
        kind: How it is answered.
        shots: Examples before each question.
        seeds: The sets of examples that there are.
        group: Tasks that belong together, such as ``mmlu`` or ``french``.
        subject: What its questions are about, for instructions that name it.
        prompt: How questions are put.
        columns: What the columns mean.
        data: Where the questions are.
        pool: Where examples are drawn from, or ``None``.
        pool_columns: What the columns there mean.
        examples: File beside the suite with the published sets of examples, or ``None``.
        examples_of: The task there that they are of.
        sample_seed: Which sample a quick run takes; the same for all sets of examples.
        max_new_tokens: Most tokens of an answer in words.
        stop: Texts that end an answer in words.
        licence: Licence of the data.
        suite: Name of the suite.
        folder: Folder of the suite's file.
    """

    name: str
    title: str
    kind: Kind
    shots: int
    seeds: tuple[int, ...]
    group: str
    subject: str
    prompt: PromptForm
    columns: Columns
    data: Source
    pool: Source | None
    pool_columns: Columns
    examples: str | None
    examples_of: str
    sample_seed: int
    max_new_tokens: int
    stop: tuple[str, ...]
    licence: str
    suite: str
    folder: Path

    @property
    def digest(self) -> str:
        """Digest of all that the suite says of this task; not of any data."""
        said = asdict(self)
        del said["folder"]
        return digest_of("task", said)


@dataclass(frozen=True, slots=True)
class Suite:
    """A set of tasks that is run and reported together.

    Attributes:
        name: Its name.
        title: Its name in reports.
        digest: Digest of all that its file says.
        tasks: Its tasks, in the order of tables.
        seeds: The sets of examples, which results are averaged over.
        description: What it measures.
        reference: Where it is published.
    """

    name: str
    title: str
    digest: str
    tasks: tuple[TaskSpec, ...]
    seeds: tuple[int, ...]
    description: str
    reference: str

    def task(self, name: str) -> TaskSpec:
        """Return the task of a name.

        Raises:
            EvaluationError: There is none.
        """
        for task in self.tasks:
            if task.name == name:
                return task
        names = [task.name for task in self.tasks]
        raise EvaluationError(
            f"The suite '{self.name}' has no task '{name}'.{did_you_mean(name, names)} It has "
            f"{', '.join(names)}."
        )
