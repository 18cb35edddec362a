"""How quickly a bad canary is found, and how often a good one is rolled back: `scripts/bench judgement`.

`streams` makes up requests, `peers` judges them as other systems do, `simulate` runs both over many rollouts, `report`
writes the table, the plot and the verdict on the bars.
"""
