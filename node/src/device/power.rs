//! Battery, charger and heat of the machine that a device runs on: what a balancer should spare.
//!
//! Linux tells it in `/sys/class/power_supply`; an app in Termux may not read that and asks `termux-battery-status`
//! (package `termux-api`). A machine that says nothing counts as one on mains.

use std::path::Path;
use std::time::Duration;

use shoal_proto::DeviceInfo;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::tasks::{self, TaskKind};

/// Where Linux tells of batteries and chargers.
const POWER_SUPPLIES: &str = "/sys/class/power_supply";
/// Command of Termux' API app.
const TERMUX: &str = "termux-battery-status";
/// Time between two looks: a battery loses no percent in less.
const EVERY: Duration = Duration::from_secs(30);
/// Longest wait for Termux' answer; it hangs when its companion app is not installed.
const ANSWER: Duration = Duration::from_secs(5);
/// Battery temperature from which phones slow down, tenths of a degree Celsius.
const HOT: i64 = 420;

/// What is known of a machine's energy and heat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Power {
    /// Charge of the battery, percent; `None` without one.
    pub battery_percent: Option<u8>,
    /// The charger is connected; `None` without a battery.
    pub charging: Option<bool>,
    /// It is so warm that it slows down; `None` = unknown.
    pub throttled: Option<bool>,
}

impl Power {
    /// Writes it into a device's announcement.
    pub(super) fn announce(self, device: &mut DeviceInfo) {
        device.battery_percent = self.battery_percent.map(u32::from);
        device.charging = self.charging;
        device.throttled = self.throttled;
    }
}

/// Watches the machine's power until shutdown; without a battery there is nothing to watch.
pub fn watch_power(shutdown: CancellationToken) -> watch::Receiver<Power> {
    let (report, power) = watch::channel(Power::default());
    tasks::spawn(TaskKind::Power, async move {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let look = async {
            loop {
                tick.tick().await;
                match look(Path::new(POWER_SUPPLIES)).await {
                    Some(now) => report.send_if_modified(|known| std::mem::replace(known, now) != now),
                    None if *report.borrow() == Power::default() => break,
                    // It told before: what is missing now will come again.
                    None => false,
                };
            }
        };
        shutdown.run_until_cancelled(look).await;
        // Readers keep the last word.
        report.closed().await;
    });
    power
}

async fn look(supplies: &Path) -> Option<Power> {
    match of_supplies(supplies) {
        Some(power) => Some(power),
        None => of_termux(&ask_termux().await?),
    }
}

/// Reads Linux' power supplies; of several batteries the fullest counts. `None` without a battery.
fn of_supplies(root: &Path) -> Option<Power> {
    let (mut power, mut mains) = (Power::default(), None::<bool>);
    for entry in std::fs::read_dir(root).ok()?.filter_map(Result::ok) {
        let read = |name: &str| {
            let text = std::fs::read_to_string(entry.path().join(name)).ok()?;
            Some(text.trim().to_owned())
        };
        match read("type").as_deref() {
            // A mouse or a pen has a battery, too.
            Some("Battery") if read("scope").as_deref() != Some("Device") => {
                let Some(percent) = read("capacity").and_then(|text| text.parse::<u8>().ok()) else {
                    continue;
                };
                power.battery_percent = power.battery_percent.max(Some(percent.min(100)));
                let fed =
                    read("status").map(|status| matches!(&*status, "Charging" | "Full" | "Not charging"));
                power.charging = power.charging.max(fed);
                let hot = read("temp").and_then(|text| text.parse::<i64>().ok()).map(|tenths| tenths >= HOT);
                power.throttled = power.throttled.max(hot);
            }
            Some("Mains" | "USB") => mains = mains.max(read("online").map(|online| online == "1")),
            _ => {}
        }
    }
    power.battery_percent?;
    power.charging = power.charging.max(mains.filter(|online| *online));
    Some(power)
}

async fn ask_termux() -> Option<Vec<u8>> {
    let mut asked = tokio::process::Command::new(TERMUX);
    asked.stdin(std::process::Stdio::null()).stderr(std::process::Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(ANSWER, asked.output()).await.ok()?.ok()?;
    output.status.success().then_some(output.stdout)
}

/// Reads the answer of `termux-battery-status`.
fn of_termux(answer: &[u8]) -> Option<Power> {
    let answer: serde_json::Value = serde_json::from_slice(answer).ok()?;
    let percent = answer["percentage"].as_f64()?.clamp(0.0, 100.0);
    let plugged = answer["plugged"].as_str().map(|plugged| plugged != "UNPLUGGED");
    Some(Power {
        battery_percent: Some(percent as u8),
        charging: plugged.or(answer["status"].as_str().map(|status| status == "CHARGING")),
        throttled: answer["temperature"].as_f64().map(|degrees| degrees * 10.0 >= HOT as f64),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supply(root: &Path, name: &str, files: &[(&str, &str)]) {
        let place = root.join(name);
        std::fs::create_dir_all(&place).unwrap();
        for (file, text) in files {
            std::fs::write(place.join(file), format!("{text}\n")).unwrap();
        }
    }

    #[test]
    fn a_laptop_tells_its_battery_and_whether_it_is_fed() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(of_supplies(root.path()), None);
        supply(root.path(), "AC", &[("type", "Mains"), ("online", "0")]);
        supply(root.path(), "mouse", &[("type", "Battery"), ("scope", "Device"), ("capacity", "5")]);
        assert_eq!(of_supplies(root.path()), None, "a machine on mains with a mouse");
        supply(
            root.path(),
            "BAT0",
            &[("type", "Battery"), ("capacity", "40"), ("status", "Discharging"), ("temp", "431")],
        );
        supply(root.path(), "BAT1", &[("type", "Battery"), ("capacity", "71"), ("status", "Unknown")]);
        let power = Power { battery_percent: Some(71), charging: Some(false), throttled: Some(true) };
        assert_eq!(of_supplies(root.path()), Some(power));
        supply(root.path(), "AC", &[("type", "Mains"), ("online", "1")]);
        assert_eq!(of_supplies(root.path()), Some(Power { charging: Some(true), ..power }));
    }

    #[test]
    fn a_phone_in_termux_tells_it_too() {
        let answer = br#"{"health":"GOOD","percentage":83,"plugged":"UNPLUGGED","status":"DISCHARGING","temperature":31.7}"#;
        let power = Power { battery_percent: Some(83), charging: Some(false), throttled: Some(false) };
        assert_eq!(of_termux(answer), Some(power));
        assert_eq!(of_termux(b"{}"), None);
        assert_eq!(of_termux(b"Termux:API is not installed"), None);
    }
}
