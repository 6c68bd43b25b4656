//! Alarms of volumes that become full.
//!
//! ```text
//!              used ≥ warning              used ≥ critical
//!   ok ─────────────────────▶ warning ─────────────────────▶ critical
//!    ◀───────────────────────         ◀─────────────────────
//!        used < warning - 2               used < critical - 2        (per cent of the volume)
//! ```

use std::sync::Arc;
use std::time::Duration;

use store::{Outcome, Transaction};
use tokio::time::sleep;

use super::Space;
use crate::records::{EventKind, EventRecord, LevelRecord, VolumeRecord};
use crate::state::{Records, State, StateError};
use crate::vm::Surroundings;

/// Between two looks at the volumes.
const LOOK: Duration = Duration::from_secs(5);
/// How much must become free, in per cent, before an alarm is over: one that comes and goes with each file is not heard any more.
const HYSTERESIS: f64 = 2.0;

/// How full it is, for people.
fn level(now: LevelRecord, used: f64, warning: u8, critical: u8) -> LevelRecord {
    let above = |threshold: u8, is_above: bool| used >= f64::from(threshold) - if is_above { HYSTERESIS } else { 0.0 };
    if above(critical, now == LevelRecord::Critical) {
        LevelRecord::Critical
    } else if above(warning, now != LevelRecord::Ok) {
        LevelRecord::Warning
    } else {
        LevelRecord::Ok
    }
}

/// Looks at the volumes, for ever.
pub async fn watch(state: State, surroundings: Arc<Surroundings>) {
    loop {
        let surroundings = surroundings.clone();
        match state.run(move |state| look(state, &surroundings)).await {
            Err(StateError::Ending) => return,
            Err(error) => tracing::error!("alarms of volumes cannot be stored: {error}"),
            Ok(()) => {}
        }
        sleep(LOOK).await;
    }
}

fn look(state: &State, surroundings: &Surroundings) -> Result<(), StateError> {
    for name in surroundings.volumes.names() {
        let Some(Ok(space)) = surroundings.volumes.space(&name) else { continue };
        let stored = state.read::<VolumeRecord>(&name)?;
        let mut record = stored.as_ref().map_or_else(|| VolumeRecord::new(&name), |stored| stored.record.clone());
        let level = level(record.level, space.used_percent(), record.warning_percent, record.critical_percent);
        if level == record.level {
            continue;
        }
        let event = told(&name, space, record.level, level);
        record.level = level;
        let transaction = Transaction::new().write(&name, &record).tell(&event);
        let transaction = match &stored {
            Some(stored) => transaction.if_still(&name, stored),
            None => transaction.if_none::<VolumeRecord>(&name),
        };
        // Changed meanwhile: the next look sees that.
        if let Outcome::Conflict { .. } = state.commit(&transaction)? {}
    }
    Ok(())
}

fn told(name: &str, space: Space, before: LevelRecord, level: LevelRecord) -> EventRecord {
    let space = format!("{:.1} % used, {} MiB free", space.used_percent(), space.free >> 20);
    let (kind, text) = match level {
        LevelRecord::Critical => (
            EventKind::VolumeAlarm,
            format!("the volume {name} is nearly full: {space}; make room, or VMs that write to it are paused"),
        ),
        LevelRecord::Warning if before == LevelRecord::Ok => {
            (EventKind::VolumeAlarm, format!("the volume {name} becomes full: {space}"))
        }
        LevelRecord::Warning => (EventKind::VolumeRecovered, format!("the volume {name} is not nearly full any more: {space}")),
        LevelRecord::Ok => (EventKind::VolumeRecovered, format!("the volume {name} has space again: {space}")),
    };
    EventRecord::now(kind, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_is_over_when_there_is_clearly_more_space() {
        use LevelRecord::{Critical, Ok, Warning};
        let mut now = Ok;
        let used = [79.9, 80.0, 79.0, 78.1, 77.9, 96.0, 93.5, 92.9, 95.0, 10.0];
        let levels = used.map(|used| {
            now = level(now, used, 80, 95);
            now
        });
        assert_eq!(levels, [Ok, Warning, Warning, Warning, Ok, Critical, Critical, Warning, Critical, Ok]);
    }
}
