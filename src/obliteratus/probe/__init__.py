"""PROBE: the residual stream of many prompts, with the shared prefix run once and no logits."""
