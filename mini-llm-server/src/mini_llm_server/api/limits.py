"""How much one HTTP request may ask for, whatever the model: each more would cost every other."""

# JSON is parsed on the event loop: this bounds how long it holds up the other streams, and how long
# a text can keep the tokenizer busy. The largest model here reads some 40 KB of text.
MAX_BODY_BYTES = 2**20
MOST_ANSWERS = 32  # n: each is a sequence of its own in the batch
MOST_STOP_STRINGS = 4  # as at OpenAI; each costs a search through every answer's text
LONGEST_STOP_STRING = 256  # characters; so much of an answer may have to be held back
MOST_STOP_TOKENS = 64
MOST_LOGIT_BIASES = 1024
LONGEST_STRUCTURE = 2**16  # characters of a JSON schema or an expression, which is compiled
