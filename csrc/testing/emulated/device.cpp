// What touches a tensor of a device asks torch's guard of that type of device, which a build of
// torch without CUDA lacks. c10 has one for tests.
#include <c10/core/impl/FakeGuardImpl.h>

namespace {

using Guard = c10::impl::FakeGuardImpl<c10::DeviceType::CUDA>;
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

}  // namespace
