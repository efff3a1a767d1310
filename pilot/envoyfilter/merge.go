package envoyfilter

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

// merge lays src over dst as proto.Merge does, but for values that mean something only as
// a whole (durations, wrapped numbers, typed configurations), which src replaces. Lists
// are joined, or replaced if replaceLists says so.
func merge(dst, src protoreflect.Message, replaceLists bool) {
	src.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsList():
			to := dst.Mutable(fd).List()
			if replaceLists {
				to.Truncate(0)
			}
			for i := range v.List().Len() {
				to.Append(cloned(v.List().Get(i)))
			}
		case fd.IsMap():
			to := dst.Mutable(fd).Map()
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				to.Set(k, cloned(v))
				return true
			})
		case fd.Message() != nil && !whole(fd.Message().FullName()):
			merge(dst.Mutable(fd).Message(), v.Message(), replaceLists)
		default:
			dst.Set(fd, cloned(v))
		}
		return true
	})
}

func cloned(v protoreflect.Value) protoreflect.Value {
	if m, ok := v.Interface().(protoreflect.Message); ok {
		return protoreflect.ValueOfMessage(proto.Clone(m.Interface()).ProtoReflect())
	}
	return v
}

// whole says that a message is one value.
func whole(name protoreflect.FullName) bool {
	return name.Parent() == "google.protobuf" && (strings.HasSuffix(string(name), "Value") || name.Name() == "Duration" || name.Name() == "Any" || name.Name() == "Timestamp")
}

// mergeAny lays the content of src over that of dst if both are of one type, and gives
// nil otherwise.
func mergeAny(dst, src *anypb.Any) (*anypb.Any, error) {
	if dst.GetTypeUrl() != src.GetTypeUrl() {
		return nil, nil
	}
	to, err := dst.UnmarshalNew()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dst.GetTypeUrl(), err)
	}
	from, err := src.UnmarshalNew()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", src.GetTypeUrl(), err)
	}
	merge(to.ProtoReflect(), from.ProtoReflect(), false)
	return packed(to)
}

// packed gives the same bytes for the same message.
func packed(m proto.Message) (*anypb.Any, error) {
	out := new(anypb.Any)
	return out, anypb.MarshalFrom(out, m, proto.MarshalOptions{Deterministic: true})
}
