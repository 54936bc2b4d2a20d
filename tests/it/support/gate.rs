//! A door in front of a server: shut, nobody gets through, and the server loses nothing.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use tailor_testkit::free_port;

/// Both ends of a connection, which lives as long as anybody speaks through it.
type Pair = (TcpStream, TcpStream);
type Pairs = Arc<Mutex<Vec<Weak<Pair>>>>;

pub struct Gate {
    port: u16,
    target: u16,
    open: Arc<AtomicBool>,
    pairs: Pairs,
    accepting: Option<JoinHandle<()>>,
}

impl Gate {
    /// An open gate before a loopback port.
    pub fn before(target: u16) -> Self {
        let mut gate = Self { port: free_port(), target, open: Arc::default(), pairs: Arc::default(), accepting: None };
        gate.open();
        gate
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn open(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).expect("bind the gate");
        listener.set_nonblocking(true).expect("a listener that can be ended");
        self.open.store(true, Ordering::SeqCst);
        let (open, pairs, target) = (self.open.clone(), self.pairs.clone(), self.target);
        self.accepting = Some(std::thread::spawn(move || {
            while open.load(Ordering::SeqCst) {
                match listener.accept() {
                    Ok((caller, _)) => join(caller, target, &pairs),
                    Err(_) => std::thread::sleep(Duration::from_millis(2)),
                }
            }
        }));
    }

    /// New connections are refused and those that exist are cut.
    pub fn shut(&mut self) {
        self.open.store(false, Ordering::SeqCst);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        for pair in self.pairs.lock().expect("pairs").drain(..).filter_map(|pair| pair.upgrade()) {
            let _ = (pair.0.shutdown(Shutdown::Both), pair.1.shutdown(Shutdown::Both));
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shut();
    }
}

fn join(caller: TcpStream, target: u16, pairs: &Pairs) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else { return };
    caller.set_nonblocking(false).expect("blocking stream");
    let pair = Arc::new((caller, server));
    for to_server in [true, false] {
        let pair = pair.clone();
        std::thread::spawn(move || {
            let (mut from, mut to) = if to_server { (&pair.0, &pair.1) } else { (&pair.1, &pair.0) };
            let mut buffer = [0; 64 << 10];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                if to.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Write);
        });
    }
    let mut pairs = pairs.lock().expect("pairs");
    pairs.retain(|pair| pair.strong_count() > 0);
    pairs.push(Arc::downgrade(&pair));
}
