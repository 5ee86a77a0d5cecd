//! Parts of the command line that stand on their own. Not the words of the whole: those are in `main`.

pub mod ask;
