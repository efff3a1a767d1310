package limit

import (
	"context"
	"net"
	"time"
)

// Visitor takes a request over HTTP of who has no certificate, and gives how long he
// has to wait, 0 for not at all. Visitors are held to the rates of those who join, and
// have buckets of their own, so that they keep no node from joining.
func (l *Limiter) Visitor(ctx context.Context, request string, from net.Addr) time.Duration {
	name := addressOf(from)
	now := l.o.Now()
	l.mu.Lock()
	b, over, wait := l.visitors.take(name, now)
	warn := b.warn(over, now)
	l.mu.Unlock()
	if over == "" {
		return 0
	}
	l.tell(ctx, name, request, over, wait, warn)
	return wait
}
