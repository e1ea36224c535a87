"""Robust gradient estimation in the presence of heavy-tailed noise (2023), figure by figure.

Schaipp, Şimşekli and Gower's experiments on the library's own estimators, each ending in a page
that states the paper's claims and whether they were found to hold.
"""
