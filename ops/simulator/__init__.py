"""An app store whose click probabilities are known: what freshet is shown with, and measured against.

options → users, apps (the world) → truth (log-odds) → slates (requests, impressions, clicks) → oracle (AUC of both):
pure, the time is passed in and all chance comes from the seed. store.py turns it, against a clock, a ranker and a log;
live.py alone knows the scorer and Kafka.
"""
