"""What a Python program asks a scorer with."""

from scorer.client.access import Access
from scorer.client.calls import (
    SERVICE,
    Explained,
    ItemExplained,
    ItemScore,
    Objective,
    Scored,
    ScorerUnavailable,
    column,
)
from scorer.client.clients import AsyncScorerClient, OperatorClient, ScorerClient

__all__ = [
    "SERVICE", "Access", "AsyncScorerClient", "Explained", "ItemExplained", "ItemScore", "Objective", "OperatorClient",
    "Scored", "ScorerClient", "ScorerUnavailable", "column",
]
