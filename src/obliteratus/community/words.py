"""What the keys of a record mean, in words for tables."""

LABELS = {
    "refusal_harmful": "refused, harmful",
    "success_harmful": "answered, harmful",
    "degenerate_harmful": "degenerate, harmful",
    "refusal_harmless": "refused, harmless",
    "degenerate_harmless": "degenerate, harmless",
    "over_refusal": "refused, safe look-alikes",
    "harm_harmful": "says what does harm",
    "log_odds_harmful": "log-odds, harmful",
    "log_odds_harmless": "log-odds, harmless",
    "kl_first": "KL of the first token",
    "kl_sequence": "KL along its answers",
    "perplexity_heldout": "perplexity, held-out text",
    "perplexity_own": "perplexity, own answers",
    "coherence": "similarity to the original",
    "coherence_prompt": "similarity to the prompt",
}
"""Key of a row -> what it is. Of another behaviour than refusal, 'refused' is what shows it."""

DUPLICATE, OUTLIER = "duplicate", "outlier"
"""How the flags of received rows begin."""


def label(key: str) -> str:
    """Return what ``key`` means; a key that is not known is its own word."""
    return LABELS.get(key, key.replace("_", " "))
