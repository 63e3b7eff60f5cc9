"""final_masks on random log_alpha: the target, the ranks and the values, in exact arithmetic."""
import itertools
import math
from fractions import Fraction

import pytest
import torch

import cofi
from cofi import FINEST_FIRST, SUBLAYER_OF, final_masks, final_z, keep_prob
from data.harness.runs import max_sparsity
from data.tests.common import MINILM, TINY, assert_close, random_log_alpha, slow


def make_config(L, d, k, h, f):
    return cofi.Config(5, 5, 2, d, k, [h] * L, [f] * L, d)


CONFIGS = {"tiny": make_config(2, 12, 2, 3, 24), "2x64": make_config(2, 64, 16, 4, 256),
           "4x128": make_config(4, 128, 16, 8, 512), "6x384": make_config(6, 384, 32, 12, 1536),
           "12x768": make_config(12, 768, 64, 12, 3072)}
SUBSETS = [groups for n in range(5, 0, -1)
           for groups in itertools.combinations(cofi.Masks.GROUPS, n)]


def random_masks(config, groups):
    """Return Masks in which each group has a mean and spread of its own, often an extreme one."""
    masks = cofi.Masks(config, groups)
    for p in masks.parameters():
        mean = float(torch.empty(()).uniform_(-10, 6))
        spread = [0.01, 0.3, 1.0, 3.0, 20.0][torch.randint(5, ())]
        kind = torch.randint(8, ())
        if kind < 3:        # all closed; all open; as at the start of training
            mean, spread = [(-10.0, 0.01), (4.6, 0.01), (3.0, 0.01)][kind]
        p.data.normal_(mean, spread).clamp_(-70, 70)    # final_z(-90) is 0 in fp32
    return masks


def random_target(masks):
    """Return a target from .01 to .99 that these masks can reach."""
    t = round(float(torch.empty(()).uniform_(0.01, 0.99)), 6)
    return min(t, math.floor(float(max_sparsity(masks)) * 1e6 - 1) / 1e6)


def count(k, z):
    """Return the number of weights that z leaves, and {group: weights of one unit of it}."""
    is_open = {group: (mask > 0).long() for group, mask in z.items()}
    d = int(is_open["z_hidn"].sum())
    heads = int((is_open["z_head"].sum(1) * is_open["z_mha"]).sum())
    units = int((is_open["z_int"].sum(1) * is_open["z_ffn"]).sum())
    h, f = z["z_head"].shape[1], z["z_int"].shape[1]
    dimension = 4 * k * heads + 2 * units
    return dimension * d, {"z_int": 2 * d, "z_hidn": dimension, "z_head": 4 * k * d,
                           "z_mha": 4 * k * d * h, "z_ffn": 2 * d * f}


def opens_at(log_alpha, n):
    """Return the shift at which n masks of a row are expected to be open, rounded."""
    low, high = -200.0, 200.0
    for _ in range(60):
        middle = (low + high) / 2
        if keep_prob(log_alpha + middle).sum() < n - 0.5:
            low = middle
        else:
            high = middle
    return high


def finest_group(log_alpha):
    return next(group for group in FINEST_FIRST if log_alpha[group].isfinite().all())


def check_target(masks, t, z):
    """Assert: not empty, never below t, above it by less than one unit of the finest group."""
    log_alpha = masks.log_alpha()
    finest = finest_group(log_alpha)
    left, unit_sizes = count(masks.k, z)
    full, _ = count(masks.k, {group: torch.ones_like(a) for group, a in log_alpha.items()})
    room = (1 - Fraction(str(t))) * full - left
    assert left > 0
    assert 0 <= room < unit_sizes[finest], (float(room), unit_sizes[finest])


def check_ranks(masks, z):
    """Assert that in each row the highest log_alpha are open, and the same for the layers."""
    log_alpha = {group: a.detach().double() for group, a in masks.log_alpha().items()}
    finest = finest_group(log_alpha)
    for group in ("z_head", "z_int", "z_hidn"):
        num_open = (z[group] > 0).sum(-1, keepdim=True)
        highest = cofi.descending_rank(log_alpha[group]) < num_open
        assert torch.equal(z[group] > 0, highest), group
    for units, layer in SUBLAYER_OF.items():
        alive = (z[layer] > 0).tolist()
        assert alive == (z[units] > 0).any(-1).tolist(), f"{layer} is open without {units}"
        for i, j in itertools.permutations(range(len(alive)), 2):
            if alive[i] and not alive[j] and log_alpha[layer][j] > log_alpha[layer][i]:
                # A dead layer may rank above an alive one only if it has no units to offer: none
                # is expected to be open at the shift that the last unit of the alive layer needs
                # (and the alive layer itself, unless units have a shift of their own).
                shift = opens_at(log_alpha[units][i], int((z[units][i] > 0).sum()))
                if units != finest:
                    shift = max(shift, 2 / 3 * math.log(1 / 11) - log_alpha[layer][i])
                expected = keep_prob(log_alpha[units][j] + shift).sum()
                assert expected < 0.5 + 1e-6, layer


def check_values(masks, z):
    """Assert final_z where a mask is open; 1 in an alive layer where the group is switched off."""
    for group, log_alpha in masks.log_alpha().items():
        value = final_z(log_alpha.detach().double())
        assert torch.equal(z[group], torch.where(z[group] > 0, value, 0.0).float()), group
        if log_alpha.isinf().all() and group in ("z_head", "z_int"):
            assert (z[group][z[SUBLAYER_OF[group]] > 0] == 1).all(), group


@slow
@pytest.mark.parametrize("name, rounds", [("2x64", 2), ("4x128", 1), ("6x384", 1)])
def test_every_subset_of_masks(name, rounds):
    torch.manual_seed(0)
    for groups in SUBSETS * rounds:
        masks = random_masks(CONFIGS[name], groups)
        t = random_target(masks)
        z = final_masks(masks, t)
        check_target(masks, t, z)
        check_ranks(masks, z)
        check_values(masks, z)


def test_parts_that_are_larger_than_the_budget():
    """In a tiny network one FFN may be more than may be left. Never below t, and never empty."""
    torch.manual_seed(0)
    # an FFN is two thirds of this network, and 42.6 % may be left: only the MHA fits
    masks = cofi.Masks(make_config(1, 128, 64, 2, 512), ("z_mha", "z_head", "z_ffn"))
    for log_alpha, value in zip(masks.parameters(), (1.0, 1.0, 3.0)):
        log_alpha.data.fill_(value)
    z = final_masks(masks, 0.574)
    assert count(64, z)[0] == 4 * 128 * 128 and (z["z_head"] > 0).all()
    for L, d, f in itertools.product((1, 2), (1, 8), (1, 32)):
        for groups in SUBSETS[::9]:
            masks = random_masks(make_config(L, d, 2, 2, f), groups)
            t = random_target(masks)
            left, _ = count(2, final_masks(masks, t))
            full, _ = count(2, {group: torch.ones_like(a)
                                for group, a in masks.log_alpha().items()})
            assert 0 < left <= (1 - Fraction(str(t))) * full, (L, d, f, groups, t)


@pytest.mark.parametrize("t", [0.01, 0.5, 0.95, 0.99])
def test_bert_base(t):
    masks = random_masks(CONFIGS["12x768"], cofi.Masks.GROUPS)
    z = final_masks(masks, t)
    check_target(masks, t, z)
    check_ranks(masks, z)


def test_final_masks_of_known_log_alpha():
    """The expected number of heads stays open; FFN units of highest log_alpha fill the budget."""
    masks = cofi.Masks(TINY)
    masks.z_head.data = torch.tensor([[5.0, -5, 5, -5]] * 3)
    masks.z_ffn.data, masks.z_int.data = torch.tensor([5.0, -5, 5]), torch.randn(3, 24)
    z = cofi.final_masks(masks, 0.5)
    assert (z["z_head"] > 0).tolist() == [[True, False, True, False]] * 3
    assert_close(z["z_head"][0, 0], torch.sigmoid(torch.tensor(5.0 / (2 / 3) * 0.8)))
    assert (z["z_ffn"] > 0).tolist() == [True, False, True]
    kept = z["z_int"] > 0
    for l in (0, 2):
        assert masks.z_int[l][kept[l]].min() > masks.z_int[l][~kept[l]].max()
    full_size, size = 3 * 16 * (4 * 16 + 2 * 24), 16 * (4 * 4 * 6 + 2 * int(kept.sum()))
    assert size <= 0.5 * full_size < size + 2 * 16


def test_never_an_empty_network():
    """No FFN is open by the rule, and the next MHA does not fit: the best FFN is opened."""
    masks = cofi.Masks(CONFIGS["2x64"], ("z_mha", "z_ffn", "z_int"))
    masks.z_mha.data = torch.tensor([1.0, 2.0])
    masks.z_ffn.data = torch.tensor([-1.0, -2.0])
    z = final_masks(masks, 0.84)
    check_target(masks, 0.84, z)
    assert (z["z_mha"] > 0).tolist() == [False, False]
    assert (z["z_ffn"] > 0).tolist() == [True, False]


@pytest.mark.parametrize("mean", [-500.0, -150.0, -50.0, 100.0])
def test_extreme_log_alpha(mean):
    """As after steps with --mask_lr 10: what stays open does not vanish in fp32."""
    masks = cofi.Masks(CONFIGS["2x64"])
    for p in masks.parameters():
        p.data.normal_(mean, 1.0)
    check_target(masks, 0.9, final_masks(masks, 0.9))


@pytest.mark.parametrize("groups, highest", [
    ("z_head", 1 / 3), ("z_int", 2 / 3), ("z_mha z_ffn", 17 / 18), ("z_hidn", 383 / 384),
    ("z_mha z_head z_ffn", 1 - 1 / 3 / 72), ("z_mha z_int", 1 - 2 / 3 / 6 / 1536)])
def test_what_masks_can_reach(groups, highest):
    """Up to max_sparsity something is left; whole layers alone would close the last one."""
    masks = random_log_alpha(MINILM, groups=groups.split())
    assert_close(max_sparsity(masks), highest, "the smallest part of a layer that is not nothing")
    z = final_masks(masks, highest - 1e-6)
    s = masks.sparsity({group: (mask > 0).double() for group, mask in z.items()}).item()
    assert s == pytest.approx(highest, abs=1e-5)


# ---- The same by brute force: every structure, and FFN units one at a time -----------------------


def paper_rule(log_alpha, shift):
    """Apply the paper's rule in plain Python: ({layers: [0 or 1]}, {group: [units kept]})."""
    p = {group: keep_prob(a + shift).tolist() for group, a in log_alpha.items()}
    layers = {group: [int(x >= 0.5) for x in p[group]] for group in ("z_mha", "z_ffn")}
    kept = {group: [round(sum(row)) for row in p[group]] for group in ("z_head", "z_int")}
    return layers, kept | {"z_hidn": [max(1, round(sum(p["z_hidn"])))]}


def num_weights(k, layers, kept):
    heads = sum(x * n for x, n in zip(layers["z_mha"], kept["z_head"]))
    units = sum(x * n for x, n in zip(layers["z_ffn"], kept["z_int"]))
    return kept["z_hidn"][0] * (4 * k * heads + 2 * units)


def all_structures(log_alpha):
    """Return every structure from the smallest to the largest: shifts are halved until they agree.
    """
    def between(low, high, at_low, at_high):
        if at_low == at_high or high - low < 1e-9:
            return []
        middle = (low + high) / 2
        at_middle = paper_rule(log_alpha, middle)
        return [*between(low, middle, at_low, at_middle), at_middle,
                *between(middle, high, at_middle, at_high)]

    first, last = paper_rule(log_alpha, -100.0), paper_rule(log_alpha, 100.0)
    return [first, *between(-100.0, 100.0, first, last), last]


def add_one_at_a_time(k, log_alpha, layers, kept, budget):
    """Open FFN units one after the other, in the order of their shifts: (heads, units, d)."""
    heads = [x * n for x, n in zip(layers["z_mha"], kept["z_head"])]
    d = kept["z_hidn"][0]
    rows = log_alpha["z_int"]
    room = (budget - 4 * k * sum(heads) * d) // (2 * d)
    open_layers = [l for l, x in enumerate(layers["z_ffn"]) if x]
    closed = sorted(set(range(len(rows))) - set(open_layers), key=lambda l: log_alpha["z_ffn"][l])
    while closed and len(open_layers) * rows.shape[1] <= room:
        open_layers.append(closed.pop())
    order = sorted((opens_at(rows[l], n), l) for l in open_layers
                   for n in range(1, rows.shape[1] + 1))
    first = [l for _, l in order[:room]]
    return heads, [first.count(l) for l in range(len(rows))], [d]


@slow
@pytest.mark.parametrize("groups", [groups for groups in SUBSETS if "z_int" in groups])
def test_against_brute_force(groups):
    """FFN units fill the largest structure that fits; if they are too few, the next larger one."""
    torch.manual_seed(1)
    for _ in range(2):
        masks = random_masks(CONFIGS["tiny"], groups)
        t = min(random_target(masks), 0.97)
        log_alpha = {group: a.detach().double() for group, a in masks.log_alpha().items()}
        full = num_weights(masks.k, *paper_rule(log_alpha, math.inf))
        budget = math.floor((1 - Fraction(str(t))) * full)
        structures = all_structures(log_alpha)
        i = sum(num_weights(masks.k, *structure) <= budget for structure in structures) - 1
        layers, kept = structures[i]
        all_units = {"z_int": [log_alpha["z_int"].shape[1]] * len(layers["z_ffn"])}
        if num_weights(masks.k, layers | {"z_ffn": [1] * len(layers["z_ffn"])},
                       kept | all_units) <= budget:
            layers, kept = structures[i + 1]
        expected = add_one_at_a_time(masks.k, log_alpha, layers, kept, budget)
        z = final_masks(masks, t)
        got = tuple((z[g] > 0).sum(-1).reshape(-1).tolist() for g in ("z_head", "z_int", "z_hidn"))
        assert got == expected, (groups, t)
