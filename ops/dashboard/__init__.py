"""`freshet dashboard`: one page that says whether the loop is right, how old its answers are, and what to do.

data (values, pure) ← reader (journals, store, sockets); render (values → HTML, pure) and chart; slate (a form's fields → a
slate); desk (what it does on request). panels (what can be pressed) and server (one look a second for all viewers) alone know
NiceGUI.
"""
