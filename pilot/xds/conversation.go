package xds

import (
	"maps"
	"slices"

	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
)

// conversation is what is said about one resource type on one stream.
// Its session's mutex guards it.
type conversation struct {
	url string
	// watch is the client's open question; nil while the client has to speak next.
	watch *watch
	// wildcard and names are what the client is subscribed to; names are sorted.
	// A copy, because go-control-plane changes its own between two watches.
	wildcard bool
	names    []string
	// told is what the client has once it has taken everything sent, sorted by name.
	told []*Resource
	// asked are names that the client wants an answer about, even if there is nothing.
	asked map[string]struct{}
	// pushes are sent and not acknowledged, oldest first.
	pushes []*push
	// refused are resources of the present target that the client did not accept.
	refused map[*Resource]struct{}
	// kept is what the client acknowledged last of each filter, which it keeps when it
	// refuses another one.
	kept map[string]*Resource
	// served says for the present target whether routes find what they ask for in what
	// the client keeps.
	served map[pair]bool
	// held are what has to stay as it is, or away: routes for want of their filter, listeners
	// that wait for their routes.
	held map[string]bool
	// unnamed: the client has resources from an earlier stream, and did not say which.
	unnamed bool
	// fresh: nothing was sent on this stream, and the client brought nothing along.
	fresh bool
}

// push is one response.
type push struct {
	// response is the message as sent, to recognize it when its nonce is known.
	response any
	nonce    string
	revision uint64
	set      []*Resource
	// renewed are what each of set comes in place of, where they are routes of listeners
	// that drain; nil for all others.
	renewed []*Resource
	// before is the state without this push, kept where a response can be
	// dropped before it is sent (state-of-the-world).
	before []*Resource
	// unnamed is that of the conversation without this push.
	unnamed bool
}

// watch is an open question and the way to answer it.
type watch struct {
	sub cache.Subscription
	// whole: a response has all that there is of a type that goes by leaving it out.
	whole bool
	// send queues a response; false if the queue is full. all is the whole state
	// of the client after the change.
	send func(p *push, c change, all []*Resource) bool
}

// removal says when what a target lacks is taken from the client.
type removal int

const (
	// never: Envoy ignores (and logs as an error) the removal of endpoints and
	// routes; it unsubscribes from them when nothing uses them. A filter that is
	// removed while a listener has it would fail every request.
	never removal = iota
	// last: when nothing refers to it any more.
	last
	// atOnce: together with the additions.
	atOnce
)

func removalOf(url string) removal {
	switch url {
	case EndpointType, RouteType, ExtensionType:
		return never
	case ListenerType, NodePlacementType:
		return atOnce
	}
	return last
}

// open takes a new question with the names in it that want an answer.
func (c *conversation) open(w *watch) {
	c.watch = w
	names := w.sub.SubscribedResources()
	if c.wildcard == w.sub.IsWildcard() && c.subscribedTo(names) {
		return
	}
	c.wildcard = w.sub.IsWildcard()
	c.names = slices.Sorted(maps.Keys(names))
	if !c.wildcard {
		c.told = without(c.told, func(name string) bool { _, ok := names[name]; return !ok })
		maps.DeleteFunc(c.asked, func(name string, _ struct{}) bool { _, ok := names[name]; return !ok })
		maps.DeleteFunc(c.kept, func(name string, _ *Resource) bool { _, ok := names[name]; return !ok })
	}
}

func (c *conversation) subscribedTo(names map[string]struct{}) bool {
	if len(names) != len(c.names) {
		return false
	}
	for _, n := range c.names {
		if _, ok := names[n]; !ok {
			return false
		}
	}
	return true
}

// ask notes names to answer about whatever the client was told before.
func (c *conversation) ask(names []string) {
	if len(names) == 0 {
		return
	}
	if c.asked == nil {
		c.asked = make(map[string]struct{}, len(names))
	}
	for _, n := range names {
		if n != "*" {
			c.asked[n] = struct{}{}
			delete(c.kept, n)
		}
	}
	c.told = without(c.told, func(name string) bool { _, ok := c.asked[name]; return ok })
}

// want is ask for a first request: what the client brought along needs no answer.
func (c *conversation) want(names []string) {
	c.ask(slices.DeleteFunc(slices.Clone(names), func(name string) bool { return find(c.told, name) != nil }))
}

// selection is what counts of a target now.
func (c *conversation) selection(removals bool) selection {
	return selection{wildcard: c.wildcard, names: c.names, removals: removals, refused: c.refused}
}

// missing lists the names asked for that neither the client nor the target has.
func (c *conversation) missing(target []*Resource) []string {
	var names []string
	for n := range c.asked {
		if find(target, n) == nil && find(c.told, n) == nil {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return names
}

// failed says that the client refused something that it should have.
func (c *conversation) failed() bool { return c != nil && len(c.refused) > 0 }

// settled says that the client has acknowledged all that the target gives it;
// removals that come last do not count.
func (c *conversation) settled(target []*Resource) bool {
	return c == nil || !c.failed() && c.quiet(target)
}

// quiet is settled, but for what the client refused.
func (c *conversation) quiet(target []*Resource) bool {
	if len(c.pushes) > 0 || c.fresh {
		return false
	}
	return diff(c.told, target, c.selection(removalOf(c.url) == atOnce)).empty()
}

// surplus says that the client holds what the target lacks.
func (c *conversation) surplus(target []*Resource) bool {
	if c == nil || removalOf(c.url) == never {
		return false
	}
	return len(diff(c.told, target, c.selection(true)).remove) > 0
}

// has says that the client has acknowledged the named resources (sorted), as far
// as the target has them.
func (c *conversation) has(names []string, target *Set) bool {
	var told []*Resource
	if c != nil {
		told = c.told
		if len(names) > 0 && len(c.pushes) > 0 {
			return false
		}
	}
	if sameList(told, target.Resources()) {
		return true
	}
	i := 0
	for _, n := range names {
		for i < len(told) && told[i].Name < n {
			i++
		}
		if i < len(told) && told[i].Name == n && told[i].Version != "" {
			continue
		}
		if target.Get(n) != nil {
			return false
		}
	}
	return true
}

// named records the nonce under which a response went out.
func (c *conversation) named(response any, nonce string) {
	for _, p := range c.pushes {
		if p.response == response {
			p.nonce = nonce
		}
	}
}

// take removes the push with that nonce, and those before it, and returns it; nil if unknown.
func (c *conversation) take(nonce string) *push {
	for i, p := range c.pushes {
		if p.nonce == nonce {
			c.pushes = append([]*push(nil), c.pushes[i+1:]...)
			return p
		}
	}
	return nil
}

// dropUnsent takes back pushes that were queued and never sent.
func (c *conversation) dropUnsent() {
	for i, p := range c.pushes {
		if p.nonce == "" {
			c.told, c.unnamed = p.before, p.unnamed
			c.pushes = c.pushes[:i]
			return
		}
	}
}

// refuse forgets what the client would have had by the push and notes which
// resources of the target it will not have.
func (c *conversation) refuse(p *push, target []*Resource) {
	told := slices.Clone(c.told)
	for _, r := range p.set {
		for i := range told {
			if told[i] == r {
				told[i] = c.before(p, r.Name)
			}
		}
		if find(target, r.Name) == r {
			if c.refused == nil {
				c.refused = map[*Resource]struct{}{}
			}
			c.refused[r] = struct{}{}
		}
	}
	c.told = told
}

// before is what a client may have of what it refused. If to leave it out of the next
// response were to take it away, that has what was there.
func (c *conversation) before(p *push, name string) *Resource {
	r := unknown(name)
	if was := find(p.before, name); was != nil && removalOf(c.url) != never {
		r.wire, r.Sources = was.wire, was.Sources
	}
	return r
}
