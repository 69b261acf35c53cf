"""Token credit: from one credit per token [P G T] to another. These come after a lift, `at_end` or `per_token`."""
