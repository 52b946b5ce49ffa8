"""Jobs: from files of points to files of results, by a file that says what, where and on which cluster."""
