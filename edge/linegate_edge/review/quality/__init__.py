"""What a station's verdicts and reviews say of its quality, and how sure that is.

Numbers in, numbers out: `distributions`, `control`, `drift`, `operating` and `periods` are pure; `counts` reads the tables;
`routes` answers. numpy alone: scipy stays in training, and in the tests that hold these formulas to it.
"""
