use super::*;
use crate::virtio::VirtioDevice;

#[test]
fn pauses_in_the_middle_of_traffic_lose_nothing() {
    for features in [MODERN, MODERN | 1 << MRG_RXBUF, (MODERN | 1 << MRG_RXBUF) & !(1 << 29)] {
        let mut bench = Bench::active(features);
        let (mut posted, mut received, mut arrived) = (0, 0, 0);
        let (mut offered, mut left) = (0, 0);
        while received < 400 || left < 400 {
            while posted < received + 40 {
                bench.post(posted % 100, 1, 1600);
                posted += 1;
            }
            for _ in 0..15 {
                bench.arrive(&body(arrived, 64 + arrived % 1000));
                arrived += 1;
                bench.offer(0x80_0000 + (offered as u64 % 100) * 0x1000, &body(offered, 64 + offered % 900));
                offered += 1;
            }
            bench.harness.queues[1].kick();
            bench.harness.pause_and_resume();
            while received < arrived as u64 {
                let used = bench.harness.wait_used(0);
                let expected = body(received as usize, 64 + received as usize % 1000);
                assert_eq!(bench.received(received % 100, used), (1, expected), "frame {received}");
                received += 1;
                if received % 7 == 0 {
                    bench.harness.pause_and_resume();
                }
            }
            while left < offered {
                assert_eq!(bench.leave(), body(left, 64 + left % 900));
                bench.harness.wait_used(1);
                left += 1;
            }
        }
    }
}

#[test]
fn buffers_held_in_advance_are_given_back_by_a_pause() {
    let mut bench = Bench::active(MODERN | 1 << MRG_RXBUF);
    bench.post(0, 10, 1600);
    bench.arrive(&body(1, 100));
    bench.harness.wait_used(0);
    let queues = bench.harness.device.quiesce();
    use virtio_queue::QueueT;
    assert_eq!(queues[0].1.next_avail(), 1);
    assert_eq!(queues[0].1.next_used(), 1);
    assert_eq!(queues.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(bench.harness.device.quiesce().is_empty());
}
