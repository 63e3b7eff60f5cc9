"""Shape comments: the shape at the end of a line is that of the value that the line makes."""
import ast
import itertools
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from data.course.guide import ROOT
from data.course.source import line_comments
from data.tests.common import make_batch
from data.tokenized import TokenizedDataset

# in the order in which they import each other
MODULES = ("data.harness.teacher", "data.sparse", "cofi", "sparsebert")

# the sizes of exercise_all_lines; two sizes: of the dense and of the pruned BERT
SIZES = {"B": {6}, "T": {11}, "L": {5}, "n": {4}, "d": {13, 10}, "h": {9, 2}, "k": {7},
         "f": {17, 14}, "vocab": {101}, "words": {50}, "classes": {8}, "rows": {24},
         "columns": {40}, "tokens": {66}, "inputs": {13, 63, 17}, "outputs": {13, 63, 17}}


def fits(shape, real, names, letters):
    """Whether a comment such as "T, h k, rows / block, 1" can mean the real shape.

    A letter is what it was before in this call of the function, or an int of the function, or one
    of its SIZES. names: the variables of the function; letters: {letter: size}, updated in place.
    """
    dims = [dim.strip().replace(" / ", "//").replace(" ", "*") for dim in shape.split(",") if dim]
    for dim, size in zip(dims, real):
        can_be = {}
        for name in {node.id for node in ast.walk(ast.parse(dim)) if isinstance(node, ast.Name)}:
            known = letters.get(name, names.get(name))
            can_be[name] = [known] if isinstance(known, int) else SIZES.get(name, [known])
        for choice in itertools.product(*can_be.values()):
            bound = dict(zip(can_be, choice))
            if eval(dim, {}, bound) == size:
                letters.update(bound)
                break
        else:
            return False
    return len(dims) == len(real)


class ShapeChecker(ast.NodeTransformer):
    """The shape comments of a file, and its code with a check of each.

    A check follows an assignment, or surrounds the value of a return, and gets the real value.
    """

    def __init__(self, path, source):
        self.path, self.found, tree = path, {}, ast.parse(source)
        inside = {line for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
                  for line in range(node.lineno, node.end_lineno + 1)}
        self.comments = {line: shapes for line, (shapes, _) in line_comments(source).items()
                         if shapes and line in inside}
        self.code = compile(ast.fix_missing_locations(self.visit(tree)), path, "exec")

    def call(self, node, value):
        call = ast.parse(f"_check({node.end_lineno}, _, locals(), _letters)", mode="eval").body
        call.args[1] = value
        return call

    def visit_FunctionDef(self, node):
        node.body.insert(0, ast.parse("_letters = {}").body[0])         # bound anew in each call
        return self.generic_visit(node)

    def visit_Assign(self, node):
        if node.end_lineno not in self.comments:
            return node
        made = ast.parse(ast.unparse(node.targets[0]), mode="eval").body
        return [node, ast.Expr(self.call(node, made))]

    def visit_Return(self, node):
        if node.end_lineno in self.comments:
            node.value = self.call(node, node.value)
        return node

    def check(self, line, value, names, letters):
        """Compare a comment with a value, or several in a tuple. Returns the value."""
        values = value if isinstance(value, tuple) else (value,)
        real = [tuple(getattr(x, "shape", ())) for x in values]
        is_right = len(real) == len(self.comments[line]) and all(
            fits(shape, x, names, letters) for shape, x in zip(self.comments[line], real))
        text = "" if is_right else f"is {', '.join(map(str, real))}"
        self.found[line] = self.found.get(line) or text
        return value

    def wrong(self):
        """Return a text for every comment that is wrong, or whose line was never reached."""
        found = {line: self.found.get(line, "is never reached") for line in self.comments}
        return [f"{self.path}:{line}: ({'), ('.join(self.comments[line])}) {text}"
                for line, text in found.items() if text]


def wrong_shape_comments(sources, monkeypatch):
    """Return a text for every wrong shape comment of {module: source}, the keys as in MODULES."""
    checkers, modules = [], []
    for name, source in sources.items():
        checker = ShapeChecker(path_of(name), source)
        module = types.ModuleType(name)
        module._check = checker.check
        # the modules that follow import this one instead of the real one
        monkeypatch.setitem(sys.modules, name, module)
        exec(checker.code, vars(module))
        checkers.append(checker)
        modules.append(module)
    exercise_all_lines(*modules)
    return [text for checker in checkers for text in checker.wrong()]


def exercise_all_lines(teacher, sparse, cofi, sparsebert):
    """Run every line with a shape comment: masked, unmasked and pruned. No two sizes are alike."""
    config = cofi.Config(101, 23, 2, 13, 7, [9] * 5, [17] * 5, 19, id2label=list("abcdefgh"))
    bert, other, masks = cofi.BERT(config).eval(), cofi.BERT(config).eval(), cofi.Masks(config)
    batch = make_batch(6, 11, 101)
    z = {group: torch.ones_like(a) for group, a in masks.sample().items()}
    for group, left in ("z_head", 2), ("z_int", 14), ("z_hidn", 10):
        z[group][..., left:] = 0
    small, out_t = cofi.prune_model(bert, z), other(**batch)
    cofi.BERT(replace(config, id2label=None, is_span=True))(**batch)
    cofi.final_masks(masks, 0.5)
    cofi.lagrangian(masks.sparsity(), 0.5, 0.0, 1.0)
    cofi.pred_loss(torch.ones(6, 1), torch.ones(6, 1), 2.0)
    for model, given, d in (bert, {}, 13), (bert, z, 13), (small, {}, 10):
        states, W_layer = model(**batch, **given).hidden_states, nn.Linear(d, 13, bias=False)
        for matching in ("free", "ordered", "fixed"):
            cofi.layer_loss(states[1:], out_t.hidden_states[1:], batch["attention_mask"], W_layer,
                            cofi.alive_layers(states), matching)

    labels, heads = torch.zeros(6).long(), {1: list(range(9))}
    for teacher_or_none in (other, None):
        sparsebert.batch_losses(bert, teacher_or_none, batch, labels, heads, use_labels=False)
    sparsebert.magnitude_mask(torch.randn(24, 40), torch.ones(24, 40).bool(), 0.5, block=8)
    sparsebert.small_dense(bert, 0.5)
    offsets = np.cumsum([0, 11, 10, 9, 8, 7, 5])
    dataset = TokenizedDataset(np.full(50, 9), offsets, np.ones(6, int), np.zeros(6, int),
                               np.zeros(0))
    head = {"dense": (torch.eye(13), torch.zeros(13)), "norm": (torch.ones(13), torch.zeros(13)),
            "bias": torch.zeros(101), "words": torch.randn(101, 13)}
    sparsebert.augment(dataset, bert, head, 4, [0, 1, 2, 3, 4], copies=1, share=1.0)
    sparse.to_csr(bert)(**batch)
    cached = teacher.CachedTeacher(other, dataset, cofi.distilled_layers(5), 100, 6)
    cached(np.arange(6), batch)


def path_of(module):
    return f"{module.replace('.', '/')}.py"


def read_sources():
    return {module: (ROOT / path_of(module)).read_text("utf-8") for module in MODULES}


def test_shape_comments(monkeypatch):
    """Every shape at the end of a line is the real one."""
    sizes = [SIZES[letter] for letter in "BTLndhkf"]
    assert sum(map(len, sizes)) == len(set().union(*sizes)), "two letters of one size: exchangeable"
    assert wrong_shape_comments(read_sources(), monkeypatch) == []


@pytest.mark.parametrize("module, true, false, message", [
    ("cofi", "# (B, T, f)", "# (B, T, d)", "(B, T, d) is (6, 11, 17)"),
    ("cofi", "# (B, T, 1)", "# (B, T, d)", "(B, T, d) is (6, 11, 1)"),
    ("cofi", "# (B, h, T, T)", "# (B, h, T)", "(B, h, T) is (6, 9, 11, 11)"),
    ("cofi", "# (n, L)", "# (L, n)", "(L, n) is (4, 5)"),
    ("cofi", "# (h k)", "# (h)", "(h) is (63,)"),
    ("cofi", "# (d)\n", "# (d), (d)\n", "(d), (d) is (13,)"),
    ("cofi", "        return x\n", "        return x\n        x = x  # (B, T)\n", "never reached"),
    ("sparsebert", "# (3)", "# (q)", "(q) is (3,)"),
    ("sparsebert", "# (rows / block, columns / block)", "# (rows, columns)", "(rows, columns) is"),
    ("data.harness.teacher", "# (B, T, n, d)", "# (B, T, d, n)", "(B, T, d, n) is (6, 11, 4, 13)"),
    ("data.sparse", "# (inputs, tokens)", "# (tokens, inputs)", "(tokens, inputs) is (13, 66)"),
])
def test_a_wrong_shape_comment_is_found(monkeypatch, module, true, false, message):
    """With its line and both shapes; and no other is found."""
    sources = read_sources()
    before, after = sources[module].split(true, 1)
    sources[module] = before + false + after
    found, = wrong_shape_comments(sources, monkeypatch)
    line = before.count("\n") + 1 + false.count("\n", 0, -1)
    assert found.startswith(f"{path_of(module)}:{line}: ") and message in found
