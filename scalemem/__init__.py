"""scalemem: how many bits a language model holds, what it memorizes, when it forgets."""
