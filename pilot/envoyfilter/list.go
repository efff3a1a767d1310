package envoyfilter

import (
	"slices"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
)

// element is one of a list that patches insert into.
type element interface {
	comparable
	proto.Message
}

// place says which elements of a list a patch means.
type place[T element] struct {
	// named says that the patch names one; without that it means all.
	named func(*patch) bool
	// is says that an element is the one that is named.
	is func(*patch, T) bool
	// fixed elements stay as they are.
	fixed func(T) bool
	// merge lays the value of a patch over an element.
	merge func(*patch, T) error
	// each says that all that match are replaced, not the first one.
	each bool
	// routes: of these INSERT_FIRST wants one that matches, and what is removed or merged
	// need not be named.
	routes bool
}

// apply does what one patch says to a list.
func (at place[T]) apply(c *change, p *patch, list []T) []T {
	named := at.named(p)
	matches := func(e T) bool { return !named || at.is(p, e) }
	fresh := func() T {
		c.did(p)
		return proto.Clone(p.value).(T) //nolint:forcetypeassert // it was read as this kind
	}
	switch p.operation {
	case networking.EnvoyFilter_Patch_ADD:
		return append(list, fresh())
	case networking.EnvoyFilter_Patch_INSERT_FIRST:
		if !at.routes || !named || slices.ContainsFunc(list, matches) {
			return slices.Insert(list, 0, fresh())
		}
	case networking.EnvoyFilter_Patch_INSERT_BEFORE:
		if !named {
			return slices.Insert(list, 0, fresh())
		}
		if i := slices.IndexFunc(list, matches); i >= 0 {
			return slices.Insert(list, i, fresh())
		}
	case networking.EnvoyFilter_Patch_INSERT_AFTER:
		if !named {
			return append(list, fresh())
		}
		if i := slices.IndexFunc(list, matches); i >= 0 {
			return slices.Insert(list, i+1, fresh())
		}
	case networking.EnvoyFilter_Patch_REPLACE:
		for i, e := range list {
			if named && matches(e) && !at.fixed(e) {
				if list[i] = fresh(); !at.each {
					break
				}
			}
		}
	case networking.EnvoyFilter_Patch_REMOVE:
		if named || at.routes {
			return slices.DeleteFunc(list, func(e T) bool {
				gone := matches(e) && !at.fixed(e)
				if gone {
					c.did(p)
				}
				return gone
			})
		}
	case networking.EnvoyFilter_Patch_MERGE, networking.EnvoyFilter_Patch_MERGE_AND_REPLACE_LIST:
		for _, e := range list {
			if matches(e) && !at.fixed(e) {
				before := proto.Clone(e)
				c.fail(p, at.merge(p, e))
				if !proto.Equal(before, e) {
					c.did(p)
				}
			}
		}
	}
	return list
}

// merges says that a patch lays its value over what is there.
func merges(p *patch) bool {
	return p.operation == networking.EnvoyFilter_Patch_MERGE || p.operation == networking.EnvoyFilter_Patch_MERGE_AND_REPLACE_LIST
}

// mergeInto lays the value of a patch over a message.
func mergeInto(c *change, p *patch, m proto.Message) {
	merge(m.ProtoReflect(), p.value.ProtoReflect(), p.operation == networking.EnvoyFilter_Patch_MERGE_AND_REPLACE_LIST)
	c.did(p)
}
