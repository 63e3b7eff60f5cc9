"""Question answering: contexts are cut into windows, and the windows' answers are combined."""
from dataclasses import dataclass, replace

import datasets
import numpy as np

from data.metrics import METRICS
from data.tokenized import (TokenizedDataset, evenly_spaced, id_dtype, map_cached,
                            unpack_list_column)

DOC_STRIDE = 128          # tokens from one window of a context to the next; paper: 128
MAX_QUERY_LENGTH = 64     # tokens of a question that are read; authors' code: 64
MAX_ANSWER_LENGTH = 30    # tokens of an answer; authors' code: 30


@dataclass
class Windows(TokenizedDataset):
    """Examples of the form [CLS] question [SEP] window of the context [SEP].

    A question has several windows if its context is long. labels (n, 2): the tokens at which the
    answer starts and ends, 0 0 if the answer is not in the window.
    """
    char_offsets: np.ndarray          # (tokens, 2) first character in the context, and one past it
    question_index: np.ndarray        # (n,) the question of each window, rising
    contexts: list                    # one for each question
    answers: list                     # accepted texts, one list for each question

    def sample(self, n):
        """Return all windows of n questions, evenly spaced, or of all if there are fewer."""
        questions = np.unique(self.question_index)
        chosen = questions[evenly_spaced(len(questions), n)]
        return self.select(np.flatnonzero(np.isin(self.question_index, chosen)))

    def select(self, indices):
        """Return the windows with these indices."""
        few = super().select(indices)
        return replace(few, char_offsets=self.char_offsets[self.token_positions(indices)],
                       question_index=self.question_index[indices])

    def predictions(self, logits):
        """Return {question: (text, score)}: the best span of all windows of each question.

        logits: one array (2, T) for each window; a score is the sum of a start and an end logit.
        """
        best = {}
        for i, (question, (start, end)) in enumerate(zip(self.question_index.tolist(), logits)):
            low = self.first_segment_length[i]
            high = self.offsets[i + 1] - self.offsets[i] - 1        # the last token is [SEP]
            score, first, last = best_span(start[low:high], end[low:high])
            if question in best and score <= best[question][1]:
                continue
            text = ""
            if high > low:
                chars = self.char_offsets[self.offsets[i] + low:]
                text = self.contexts[question][chars[first, 0]:chars[last, 1]]
            best[question] = text, score
        return best

    def score(self, logits, metrics):
        """Return {metric: value} over the questions."""
        best = self.predictions(logits)
        texts = [text for text, _ in best.values()]
        accepted = [self.answers[question] for question in best]
        return {name: METRICS[name](texts, accepted) for name in metrics}


class AcceptedTexts:
    """The accepted texts of question i, read from disk when they are asked for."""

    def __init__(self, column):
        self.column = column

    def __getitem__(self, i):
        return self.column[i]["text"]


def best_span(start, end):
    """Return (score, first, last) of the span with the largest start[first] + end[last].

    Example:
    >>> best_span(np.array([0., 5., 1.]), np.array([4., 0., 2.]))    # an end before its start: no
    (7.0, 1, 2)
    """
    best = -np.inf, 0, 0
    for length in range(min(MAX_ANSWER_LENGTH, len(start))):        # of the span, minus 1
        total = start[:len(start) - length] + end[length:]
        i = int(total.argmax())
        if total[i] > best[0]:
            best = float(total[i]), i, i + length
    return best


def char_to_token_span(char_offsets, begin, end):
    """Return the first and last token that overlap characters begin:end, or None."""
    touched = np.flatnonzero((char_offsets[:, 0] < end) & (char_offsets[:, 1] > begin))
    return (touched[0], touched[-1]) if len(touched) else None


def make_windows(batch, indices, tokenizer, max_length):
    """Cut a batch of questions and contexts into windows: {field of Windows: list}."""
    windows = {name: [] for name in ("input_ids", "first_segment_length", "labels", "char_offsets",
                                     "question_index")}
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    questions, contexts = (tokenizer.encode_batch(batch[name], add_special_tokens=False)
                           for name in ("question", "context"))
    for index, question, context, answers in zip(indices, questions, contexts, batch["answers"]):
        prefix = [cls, *question.ids[:min(MAX_QUERY_LENGTH, max_length // 2)], sep]
        room = max_length - len(prefix) - 1
        chars = np.array(context.offsets).reshape(-1, 2)
        span = None
        if answers["text"]:
            begin = answers["answer_start"][0]
            span = char_to_token_span(chars, begin, begin + len(answers["text"][0]))
        stride = min(DOC_STRIDE, room)
        for low in range(0, max(len(chars) - room, 0) + stride, stride):
            ids = context.ids[low:low + room]
            is_inside = span and low <= span[0] and span[1] < low + len(ids)
            shift = len(prefix) - low                               # from the context to the window
            labels = [span[0] + shift, span[1] + shift] if is_inside else [0, 0]
            window_chars = np.zeros((len(prefix) + len(ids) + 1, 2), dtype=np.int32)
            window_chars[len(prefix):-1] = chars[low:low + room]
            windows["input_ids"].append([*prefix, *ids, sep])
            windows["first_segment_length"].append(len(prefix))
            windows["labels"].append(labels)
            windows["char_offsets"].append(window_chars.ravel())
            windows["question_index"].append(index)
    return windows


def tokenize_squad(raw, tokenizer, max_length):
    """Return Windows of a datasets.Dataset with the columns question, context and answers."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    dtypes = {"input_ids": [id_dtype(tokenizer)], "first_segment_length": "int32",
              "labels": ["int32"], "char_offsets": ["int32"], "question_index": "int32"}
    table = map_cached(raw, make_windows, dtypes, tokenizer=tokenizer, max_length=max_length)
    input_ids, offsets = unpack_list_column(table["input_ids"])
    labels, char_offsets = (unpack_list_column(table[name])[0].reshape(-1, 2)
                            for name in ("labels", "char_offsets"))
    return Windows(
        input_ids, offsets, table["first_segment_length"].to_numpy(), labels.astype(np.int64),
        subset=np.array([], dtype=str), char_offsets=char_offsets,
        question_index=table["question_index"].to_numpy(), contexts=raw["context"],
        answers=AcceptedTexts(raw["answers"]))


def window_from_text(question, context, tokenizer, max_length):
    """Return the Windows of one question whose answer is not known."""
    raw = datasets.Dataset.from_dict({"question": [question], "context": [context],
                                      "answers": [{"text": [], "answer_start": []}]})
    return tokenize_squad(raw, tokenizer, max_length)
