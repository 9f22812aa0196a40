"""A demonstration on real models: an instruct model, a biomedical fine-tune of it, their merges.

Nothing in ``forge`` imports this package. It may use torch and transformers, which
the product itself does not need: ``pip install 'forge[demo]'``.
"""
