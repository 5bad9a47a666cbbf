"""Experiments on bitsfusion: rivals, the paper's tables, peers measured. They import the product, never the reverse."""
