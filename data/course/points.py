"""The points of the assignment, for a lecturer to edit."""

# {part: {function: points}}
POINTS = {
    1: {"sample_z": 5, "keep_prob": 5, "final_z": 2},
    2: {"MaskedLayerNorm.forward": 6, "MHA.split_heads": 2, "MHA.scores": 3, "MHA.forward": 6,
        "FFN.forward": 4, "Layer.forward": 4},
    3: {"Masks.sparsity": 3, "expected_size": 5, "count_encoder_weights": 2, "lagrangian": 3},
    4: {"pred_loss": 5, "match_layers": 8, "layer_loss": 8},
    5: {"deterministic_masks": 6, "fold": 5, "fold_norm": 2, "fold_mha": 5, "fold_ffn": 3},
    6: {"magnitude_mask": 6, "cubic_sparsity": 2, "hidden_loss": 3, "attention_loss": 3}}
POINT_OF_A_QUESTION = 1
