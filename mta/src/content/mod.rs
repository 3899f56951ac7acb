//! What is inside a message: file types, archives, macros, structural evidence of spam. Pure, bounded.
