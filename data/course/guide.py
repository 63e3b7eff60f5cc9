"""The guide: every equation of the code, where it is, and which tests check it.

    python test_cofi.py --guide
"""
from pathlib import Path
from typing import NamedTuple

from data.course.source import function_at, line_comments

ROOT = Path(__file__).resolve().parents[2]
FILES = ("cofi.py", "sparsebert.py")


class Equation(NamedTuple):
    tag: str                  # as in the comment: §3.1 MHA
    file: str
    line: int
    function: str             # "MHA.forward"


# which tests check an equation, all in test_cofi.py
TESTS = {
    "§3.1 z_hidn": ["test_norm_is_the_layernorm_of_what_is_kept"],
    "§3.1 MHA": ["test_mha_with_masks", "test_bert_with_masks"],
    "§3.1 FFN": ["test_ffn_with_masks", "test_bert_with_masks"],
    "§ hard concrete": ["test_hard_concrete"],
    "§ P(z > 0)": ["test_keep_prob"],
    "§ final z": ["test_final_z"],
    "§3.1 sparsity": ["test_sparsity", "test_bert_base_has_84934656_weights_and_sparsity_0"],
    "§3.1 expected size": ["test_expected_size",
                           "test_bert_base_has_84934656_weights_and_sparsity_0"],
    "§ L_c": ["test_lagrangian"],
    "§3.2 L_pred": ["test_L_pred", "test_L_pred_of_a_regression"],
    "§3.2 m(i)": ["test_m_of_i"],
    "§3.2 L_layer": ["test_L_layer", "test_L_layer_without_an_alive_layer_is_0"],
    "§3.2 L_distil": ["test_distillation_loss"],
    "§ deterministic z": ["test_deterministic_z"],
    "§ budget": ["test_final_masks_meet_the_target", "test_final_masks_of_known_log_alpha"],
    "§ fold": ["test_fold", "test_prune_model"],
    "§ warm-up": ["test_target_sparsity"],
    "§3 magnitude mask": ["test_magnitude_mask", "test_magnitude_mask_of_blocks"],
    "§3 cubic schedule": ["test_cubic_schedule", "test_pruning_schedule"],
    "§3 L_hidden": ["test_hidden_loss"],
    "§3 L_att": ["test_attention_loss"],
    "§3 L_pred": ["test_distillation_adds_up_the_layers"],
}


def equations():
    """Return an Equation for every § at the end of a line of the two files, in their order."""
    found = []
    for file in FILES:
        source = (ROOT / file).read_text("utf-8")
        for line, (_, tag) in line_comments(source).items():
            if tag:
                found.append(Equation(tag, file, line, function_at(source, line)))
    return found


def print_guide():
    """Print a table: equation, place, function, tests."""
    row = "{:20}{:20}{:24}{}"
    print(row.format("equation", "line", "function", "tests"))
    for tag, file, line, function in equations():
        print(row.format(tag, f"{file}:{line}", function, ", ".join(TESTS[tag])))
