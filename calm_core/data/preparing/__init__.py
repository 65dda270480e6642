"""From sources to a dataset, a partition at a time.

The steps: plan -> scan each partition -> find duplicates, train the tokenizer -> tokenize each partition -> merge.
Every step is a function of its inputs, so that Kubeflow can run, retry and cache it alone. A step that finds its output
already made, from the same inputs by the same code, takes it.
"""
