"""The words of the store. Their order is part of the seed's meaning: add at the end."""

from __future__ import annotations

from typing import NamedTuple


class AgeBand(NamedTuple):
    name: str
    first: int  # years, included
    last: int


AGE_BANDS = (
    AgeBand("13-17", 13, 17), AgeBand("18-24", 18, 24), AgeBand("25-34", 25, 34),
    AgeBand("35-44", 35, 44), AgeBand("45-54", 45, 54), AgeBand("55+", 55, 85),
)
GENDERS = ("f", "m", "")  # "" = not given
COUNTRIES = ("NO", "SE", "DE", "FR", "GB", "US", "BR", "IN")
CATEGORIES = (
    "food_delivery", "shooter", "role_playing", "puzzle", "casual", "strategy", "news", "social",
    "video", "music", "finance", "shopping", "travel", "education", "fitness", "tools",
)
CATEGORY_SHARES = (0.09, 0.08, 0.08, 0.07, 0.08, 0.06, 0.06, 0.06, 0.06, 0.05, 0.05, 0.06, 0.05, 0.05, 0.05, 0.05)
TAGS = ("offline", "multiplayer", "ads", "family", "editors_choice", "subscription", "beta", "local")
