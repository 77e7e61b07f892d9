"""The paper's figures and other questions, each a few runs of the loop and what is read off them."""
