"""The edge: the right door, the size limit, the commit, the answer. Opens no body, knows no provider's words."""
