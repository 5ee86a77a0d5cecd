//! The command line of the gateway.

fn main() -> anyhow::Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|command| command == "demo") {
        tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::WARN).init();
        return Ok(isthmus_gateway::demo::run(arguments.iter().any(|argument| argument == "--once"))?);
    }
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let path = std::path::PathBuf::from(std::env::args().nth(3).unwrap_or_default());
    let settings = isthmus_gateway::config::load(&path)?;
    let gateway = isthmus_gateway::gateway::Gateway::start(settings, Some(path))?;
    for bound in gateway.bound() {
        eprintln!("listening {} address={}", bound.what, bound.address);
    }
    eprintln!("ready");
    gateway.wait()?;
    Ok(())
}
