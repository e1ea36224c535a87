"""Language models on PTB and WikiText-2: corpora, two transformers, and their gradients."""
