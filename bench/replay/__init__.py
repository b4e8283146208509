"""Recommendations judged on real data: viewings replayed in time order, each list made from what was known then."""
