"""Feeds the command line and the nodes a thousand bad inputs, each bounded in time and memory, and judges what came.

python -m tools.attack                      # 1,000 cases of every kind
python -m tools.attack --kinds picture,sound --cases 100
python -m tools.attack --seed 1 --case 17   # case 17 of seed 1 again, alone; its files are kept
"""
