"""The paper's Tables 3 to 7 in miniature: every method and every choice on one model, one data set, the same seeds."""
