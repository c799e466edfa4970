//! Texts made from the definition of the command line: completion scripts and man pages.

use clap_complete::env::Shells;

use crate::{
    args::{CompletionsArgs, ManArgs, command},
    surroundings::Context,
    trouble::Trouble,
};

/// The variable by which the completion script asks this program for candidates.
pub(crate) const COMPLETE_VARIABLE: &str = "HOSTEL_COMPLETE";

/// `hostel completions`.
pub(super) fn completions(context: &Context, args: &CompletionsArgs) -> Result<(), Trouble> {
    let shells = Shells::builtins();
    let shell = shells
        .completer(&args.shell)
        .expect("the parser allows only shells that there are");
    let mut script = Vec::new();
    shell
        .write_registration(COMPLETE_VARIABLE, "hostel", "hostel", "hostel", &mut script)
        .map_err(|e| Trouble::file("cannot make the script", &e))?;
    context.printer.bytes(&script)
}

/// `hostel __man`: one page for the program and one for each verb.
pub(super) fn man(args: &ManArgs) -> Result<(), Trouble> {
    clap_mangen::generate_to(command(), &args.dir).map_err(|e| {
        Trouble::file(
            format!("cannot write man pages to `{}`", args.dir.display()),
            &e,
        )
    })
}
