"""Use a model: fill_mask, embed, classify, tag, choose, answer; generation."""
