"""The CALM model family (arXiv 2510.27688).

Suffixes of tensor names, one letter per dimension:
    B sequences of a batch    P chunks (positions) of a sequence    K tokens of a chunk    V vocabulary
    D hidden size             L latent size                         H attention heads      E size of one head
    N samples of the model    M samples of the target               R positions that count, of all sequences
    S samples per position in evaluation and generation      W tokens before a chunk that its decoder reads
"""
