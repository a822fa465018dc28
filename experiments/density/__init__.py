"""Density estimation in two dimensions: the paper's P4Inv flow against RealNVP (Krämer, Köhler and Noé 2020, 4.1).

`settings` and `config` say what is run, `data` and `models` what on, `job` trains and measures one model, `run` makes
what a run leaves, with `table` and `figure`, or tunes the learning rates that `rates` reads.
"""
