"""Rewards made of rewards: one file a method, each a `RewardTransform` of a graded rollout."""
