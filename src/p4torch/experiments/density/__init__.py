"""Density estimation in two dimensions: the paper's P4Inv flow against RealNVP (Krämer, Köhler and Noé 2020, 4.1).

`config` says what is run, `data` and `models` what on, `job` trains and measures one model, `pool` runs jobs in
parallel, `run` makes the run folder with table and figure, `tune` finds the learning rates that `rates` ships.
"""
