"""Self-generated long instruction data (LLaMA 2 Long, sections 2.2 and 4.3): a chat model asks and answers about chunks of long documents.

chunks.py       which chunk of which document, and what kind of question
prompts.py      what the model is asked, in words of our own
generators.py   our own engine · endpoint.py an OpenAI-compatible server · rules.py questions made by rule
extract.py      the answer's parts, however sloppy its tags
filters.py      rules that an example must pass · critique.py a model's verdict, and whether that verdict is worth anything
journal.py      what was answered already: nothing is asked twice
pipeline.py     all of it in order, and the files that come out
together.py     Llama-2-7B-32K-Instruct's data in small, by rule

What comes out is trained on as a source of instruction data (lit_long/data/conversations.py).
"""
