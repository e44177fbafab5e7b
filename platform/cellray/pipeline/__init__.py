"""From files of counts to a promoted model: the verbs in order, from one file."""
