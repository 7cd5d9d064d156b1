"""``obliteratus verify``: measure two models with the same code and compare them."""


def verify() -> None: ...
