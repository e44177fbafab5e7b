"""The table of views; an entry called with its settings gives a `View`."""

from collections.abc import Callable

from cellray.views.masks import View, random_mask

VIEWS: dict[str, Callable[..., View]] = {
    "random_mask": random_mask,
}
