"""Question answering: contexts cut into windows, and windows put together to an answer again."""
from dataclasses import dataclass, replace

import numpy as np

from .metrics import METRICS
from .rows import Rows, flat, id_type, kept

STRIDE = 128              # tokens from one window of a context to the next; paper: 128
QUESTION = 64             # tokens of a question that are read; the authors': 64
LONGEST = 30              # tokens of an answer; the authors': 30


@dataclass
class Windows(Rows):
    """Rows of [CLS] question [SEP] a window of the context [SEP]; several may be of one question.

    label (n, 2): the tokens at which the answer starts and ends, 0 0 if it is not in the window.
    """
    place: np.ndarray         # (tokens, 2) first character in the context, and the one after
    question: np.ndarray      # (n,) which question a window belongs to, rising
    contexts: list            # by question
    answers: list             # by question: the accepted texts

    def head(self, n):
        """The first n windows, or all if there are fewer."""
        few = super().head(n)
        return replace(few, place=self.place[:len(few.ids)], question=self.question[:len(few)])

    def predicted(self, logits):
        """{question: (text, score)}: the best span of all its windows.

        logits: an array a window, (2, T), of start and end; the score is the sum of the two.
        """
        best = {}
        for row, (question, (start, end)) in enumerate(zip(self.question.tolist(), logits)):
            low, high = self.first[row], self.start[row + 1] - self.start[row] - 1  # without [SEP]
            score, i, j = best_span(start[low:high], end[low:high])
            if score > best.get(question, ("", -np.inf))[1] or question not in best:
                place = self.place[self.start[row] + low:][:high - low]
                text = self.contexts[question][place[i, 0]:place[j, 1]] if high > low else ""
                best[question] = text, score
        return best

    def score(self, logits, metrics):
        """{metric: value} over the questions."""
        best = self.predicted(logits)
        texts, answers = [text for text, _ in best.values()], [self.answers[i] for i in best]
        return {name: METRICS[name](texts, answers) for name in metrics}


def best_span(start, end):
    """(score, first, last) of the span with the largest start[first] + end[last].

    Example:
    >>> best_span(np.array([0., 5., 1.]), np.array([4., 0., 2.]))    # an end before its start: no
    (7.0, 1, 2)
    """
    best = -np.inf, 0, 0
    for more in range(min(LONGEST, len(start))):
        total = start[:len(start) - more] + end[more:]              # (spans of 1 + more tokens)
        i = int(total.argmax())
        best = max(best, (float(total[i]), i, i + more), key=lambda span: span[0])
    return best


def span_of(place, begin, end):
    """The first and last of the tokens that characters begin:end touch; None if there are none."""
    touched = np.flatnonzero((place[:, 0] < end) & (place[:, 1] > begin))
    return (touched[0], touched[-1]) if len(touched) else None


def windows(batch, numbers, tokenizer, max_length):
    """The windows of a batch of questions, as lists of what `Windows` holds."""
    made = {name: [] for name in ("ids", "first", "label", "place", "question")}
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    questions, contexts = (tokenizer.encode_batch(batch[name], add_special_tokens=False)
                           for name in ("question", "context"))
    for number, question, context, answers in zip(numbers, questions, contexts, batch["answers"]):
        head = [cls, *question.ids[:min(QUESTION, max_length // 2)], sep]
        room, where = max_length - len(head) - 1, np.array(context.offsets).reshape(-1, 2)
        span = None
        if answers["text"]:
            begin = answers["answer_start"][0]
            span = span_of(where, begin, begin + len(answers["text"][0]))
        step = min(STRIDE, room)
        for low in range(0, max(len(where) - room, 0) + step, step):
            ids = context.ids[low:low + room]
            inside = span and low <= span[0] and span[1] < low + len(ids)
            made["ids"].append([*head, *ids, sep])
            made["first"].append(len(head))
            made["label"].append([x - low + len(head) for x in span] if inside else [0, 0])
            place = np.zeros((len(head) + len(ids) + 1, 2), dtype=np.int32)
            place[len(head):-1] = where[low:low + room]
            made["place"].append(place.ravel())
            made["question"].append(number)
    return made


def windows_from(raw, tokenizer, max_length):
    """Windows of a datasets.Dataset with the columns question, context and answers."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    table = kept(raw, windows, {"ids": [id_type(tokenizer)], "first": "int32", "label": ["int32"],
                                "place": ["int32"], "question": "int32"},
                 tokenizer=tokenizer, max_length=max_length)
    label, place = (flat(table[name])[0].reshape(-1, 2) for name in ("label", "place"))
    return Windows(*flat(table["ids"]), table["first"].to_numpy(), label.astype(np.int64),
                   np.array([], dtype=str), place, table["question"].to_numpy(), raw["context"],
                   Answers(raw["answers"]))


def windows_from_text(question, context, tokenizer, max_length):
    """The Windows of one question, whose answer is not known."""
    import datasets
    raw = datasets.Dataset.from_dict({"question": [question], "context": [context],
                                      "answers": [{"text": [], "answer_start": []}]})
    return windows_from(raw, tokenizer, max_length)


class Answers:
    """The accepted texts of question i, read when they are asked for."""

    def __init__(self, column):
        self.column = column

    def __getitem__(self, i):
        return self.column[i]["text"]
