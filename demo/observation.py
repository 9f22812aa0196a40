"""What is asked of each checkpoint, and what is noted of its answers.

Plain data, so that the process that prints the table needs no transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_REPLY_TOKENS = 64

# Invented for the demonstration; neither the study nor its figures exist.
QUESTION = "Does early physiotherapy shorten the hospital stay after hip fracture surgery?"
ABSTRACT = (
    "Hip fracture surgery is followed by long hospital stays in older adults. It is not known "
    "whether physiotherapy that begins on the day of surgery helps. We randomised 412 patients "
    "aged 65 or older to begin physiotherapy within 12 hours of surgery or on the third day. "
    "The primary outcome was the length of stay. Patients in the early group left hospital after "
    "a mean of 7.1 days, against 9.8 days in the other group (p < 0.001). Falls and wound "
    "infections were equally frequent in both groups."
)
CHATS = (
    (
        "What is the difference between type 1 and type 2 diabetes?",
        "In type 1 diabetes the immune system destroys the cells of the pancreas that make "
        "insulin. In type 2 diabetes the body still makes insulin but responds to it poorly.",
    ),
    (
        "Is a fever of 38 degrees dangerous for an adult?",
        "Usually not. A mild fever is part of the body's response to an infection. See a doctor "
        "if it lasts longer than three days or comes with chest pain or a stiff neck.",
    ),
    (
        "Do statins lower the risk of a second heart attack?",
        "Yes. Trials found that statins lower the risk of another heart attack and of death from "
        "heart disease in patients who have already had one.",
    ),
    (
        "Write one sentence about the sea.",
        "The sea was calm that morning, and the boats lay still in the pale light.",
    ),
    (
        "How do I reverse a list in Python?",
        "Call its reverse method to change it in place, or use reversed to get an iterator.",
    ),
)


@dataclass(frozen=True, slots=True)
class Observation:
    """What one checkpoint did.

    Attributes:
        checkpoint: Its folder.
        reply: Greedy reply to the question, at most ``MAX_REPLY_TOKENS`` tokens.
        decisions: Probability that the reply begins with each decision.
        divergences: KL from each parent in nats, in the order of the parents.
        seconds: Wall time of loading and measuring.
    """

    checkpoint: str
    reply: str
    decisions: dict[str, float]
    divergences: list[float]
    seconds: float
