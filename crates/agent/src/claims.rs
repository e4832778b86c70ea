//! Which instance's application a port of 127.0.0.1 is for: pure.
//!
//! A proxy reaches its application at `127.0.0.1:TARGET-PORT`, where another application of the same host could be
//! as well. Holds: a port is claimed by one instance at a time. Does not: know who listens.

use std::collections::BTreeMap;

/// The target ports of the instances of one host.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    by_port: BTreeMap<u16, String>,
}

impl Claims {
    /// Claims exactly `ports` for `proxy` (`NS/INSTANCE`).
    ///
    /// # Errors
    /// The first port that is another's, and whose; what was claimed before stays claimed.
    pub(crate) fn claim(&mut self, proxy: &str, ports: &[u16]) -> Result<(), (u16, String)> {
        for port in ports {
            if let Some(holder) = self.by_port.get(port).filter(|holder| *holder != proxy) {
                return Err((*port, holder.clone()));
            }
        }
        self.by_port.retain(|port, holder| holder != proxy || ports.contains(port));
        self.by_port.extend(ports.iter().map(|port| (*port, proxy.to_owned())));
        Ok(())
    }

    /// Gives back what `proxy` has claimed. Whether there was anything.
    pub(crate) fn release(&mut self, proxy: &str) -> bool {
        let before = self.by_port.len();
        self.by_port.retain(|_, holder| holder != proxy);
        self.by_port.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_one_instances_at_a_time() {
        let mut claims = Claims::default();
        assert_eq!(claims.claim("shop/mute-1", &[80, 81]), Ok(()));
        assert_eq!(claims.claim("shop/mute-1", &[81, 82]), Ok(()), "of its own");
        assert_eq!(claims.claim("shop/clash-1", &[83, 81]), Err((81, "shop/mute-1".to_owned())));
        assert_eq!(claims.claim("shop/other-1", &[80, 83]), Ok(()), "given back, and not taken in part");
        assert!(claims.release("shop/mute-1") && !claims.release("shop/mute-1"));
        assert_eq!(claims.claim("shop/clash-1", &[81]), Ok(()));
    }
}
